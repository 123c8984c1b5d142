# make demo    the main job, on real namespaces (root)
# make test    the Rust and the ExUnit suites
# make test-unprivileged  the ExUnit suite as it runs for an ordinary user (root)
# make check   formatting, lints, warnings as errors, layers and cycles, Dialyzer
# make soak    random operations, storms and kills for SOAK_SECONDS (300; root)
# make bench   compares the helper with OTP's own socket (root)
# make dist    static executables for MACHINES with checksum and SBOM; that of this machine is started in an empty
#              root and on Debian's releases
# make architectures  namespaces, delivery and protocol on ARCHITECTURES, in emulated machines (root)
# make containers  the release of the sample under podman and runc (root)
# make musl    the suite with a helper built against musl, the C library of Alpine (root)
# make matrix  the whole suite on Debian bookworm, trixie and sid: SUITES (root)
# make kernels the doctor, the suites and a soak on Debian's kernels under emulation: KERNELS (root)
# make docs    the documentation, into doc/ (root)
# make fuzz    FUZZ_RUNS executions of each fuzz target (nightly Rust and cargo-fuzz)
# make recording  docs/demo.svg, a recording of the demo (root, npx)
# make clean   removes what was built, except roots and images
#
# Each target first installs the Debian packages that it needs.

export LC_ALL := C.UTF-8
export PATH := $(HOME)/.cargo/bin:$(PATH)

PACKAGES := elixir git erlang-nox erlang-dev erlang-dialyzer erlang-proper iproute2 libcap2-bin procps gcc libc6-dev
# Programs that tests compare with. If one is missing, its tests are skipped with a line that says so.
COUNTERPARTS := nftables conntrack iputils-ping tshark

.PHONY: demo test test-unprivileged check matrix kernels architectures containers musl docs soak bench dist fuzz recording dialyzer setup counterparts clean

demo: setup
	@mix compile
	@mix run examples/demo.exs

test: setup counterparts
	cargo test --release --locked
	mix test

test-unprivileged: setup counterparts
	.ci/unprivileged

check: setup
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- --deny warnings
	mix format --check-formatted
	MIX_ENV=dev mix compile --force --warnings-as-errors
	MIX_ENV=test mix compile --force --warnings-as-errors
	MIX_ENV=dev mix xref graph --format cycles --fail-above 0
	MIX_ENV=dev mix run --no-compile --no-start test/layers/check.exs
	@$(MAKE) --no-print-directory dialyzer

# The chroots, and the builds in them, are kept in MATRIX_DIR (.matrix). A step that has passed is not run again, here
# and in musl and dist, except with FORCE=1 (test/steps.sh). `exec`, here and below: a signal to make has to reach the
# script, and not a shell around it.
SUITES ?= bookworm trixie sid

matrix: setup
	@PACKAGES="$(PACKAGES) $(COUNTERPARTS)" exec test/matrix/run.sh $(SUITES)

# KERNELS names Debian suites. UML=1 takes their user-mode Linux, which is faster than emulation. Chroot, kernels, images
# and logs are kept in KERNELS_DIR (.kernels). test/kernels/run.sh lists the other variables.
kernels: setup
	@$(call install,qemu-system-x86 e2fsprogs cpio kmod xz-utils zstd)
	@PACKAGES="$(PACKAGES) $(filter-out tshark,$(COUNTERPARTS))" exec test/kernels/run.sh $(KERNELS)

# In the chroot of trixie: Debian 12 has no ExDoc.
docs:
	@test/matrix/docs.sh

# libFuzzer starts from the inputs of fuzz/corpus and writes new ones to fuzz/target/found. fuzz/keep.sh adds these to
# fuzz/corpus.
FUZZ_RUNS ?= 1000000
FUZZ_TARGETS ?= frame term command

fuzz: setup
	@command -v cargo-fuzz >/dev/null && cargo +nightly --version >/dev/null 2>&1 || { \
	  echo "fuzzing needs 'rustup toolchain install nightly' and 'cargo install --locked cargo-fuzz'" >&2; exit 1; }
	@for target in $(FUZZ_TARGETS); do \
	  found=fuzz/target/found/$$target log=fuzz/target/$$target.log; mkdir -p $$found; \
	  corpus=fuzz/target/corpus/$$target; rm -rf $$corpus; fuzz/corpus.sh unpack $$target $$corpus || exit 1; \
	  cargo +nightly fuzz run $$target $$found $$corpus -- -runs=$(FUZZ_RUNS) \
	    -dict=fuzz/dictionary -max_len=4096 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=1024 \
	    -print_final_stats=1 >$$log 2>&1 || { tail -40 $$log; exit 1; }; \
	  sed -n "s/^stat::number_of_executed_units: */$$target: executions /p" $$log; \
	done

# npx downloads the program that draws the recording. The picture is in the repository, so that only this target needs
# it.
recording: PACKAGES += asciinema python3
recording: setup
	docs/record.sh

soak: setup
	MIX_ENV=test mix run test/soak/soak.exs

# pyroute2 is compared with, and gnuplot draws the chart. Both sides of each comparison run at the highest priority.
bench: PACKAGES += python3-pyroute2 gnuplot-nox
bench: setup
	@test "$$(id -u)" = 0 || { echo "the benchmark makes namespaces: run it as root" >&2; exit 1; }
	@mix compile
	@setsid --wait sh -c 'if [ -e /proc/self/autogroup ]; then echo -20 >/proc/self/autogroup; fi; \
	  exec nice -n -20 mix run bench/bench.exs'

# For other machines the static C library and the emulator that starts the executables are Debian's.
MACHINES ?= x86_64 aarch64 armhf riscv64

dist: PACKAGES += binutils qemu-user-static $(foreach machine,$(MACHINES),$(CROSS_$(machine)))
dist: setup
	@test/dist/run.sh $(MACHINES)

CROSS_aarch64 = gcc-aarch64-linux-gnu libc6-dev-arm64-cross
CROSS_armhf = gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
CROSS_riscv64 = gcc-riscv64-linux-gnu libc6-dev-riscv64-cross
CROSS_s390x = gcc-s390x-linux-gnu libc6-dev-s390x-cross

# Roots, kernels and the list of passed steps are kept in ARCHITECTURES_DIR (.architectures).
ARCHITECTURES ?= aarch64 riscv64 armhf s390x

architectures: PACKAGES += mmdebstrap debian-archive-keyring e2fsprogs cpio kmod xz-utils \
  $(shell for arch in $(ARCHITECTURES); do (. test/architectures/machine.sh; echo $$package); done) \
  $(foreach machine,$(ARCHITECTURES),$(CROSS_$(machine)))
architectures: setup
	@test/architectures/run.sh $(ARCHITECTURES)

# The image is kept in CONTAINERS_DIR (.containers).
containers: PACKAGES += podman runc conmon jq mmdebstrap debian-archive-keyring uidmap slirp4netns fuse-overlayfs
containers: setup
	@test/containers/run.sh

# MUSL_TESTS are files of the suite. Defaults to all.
musl: setup counterparts
	@test/musl/run.sh $(MUSL_TESTS)

# The PLT of OTP, Elixir and Mix is built once and kept, by version.
ELIXIR_EBIN = $(shell elixir -e 'IO.puts(:code.lib_dir(:elixir))')/ebin
MIX_EBIN = $(shell elixir -e 'IO.puts(:code.lib_dir(:mix))')/ebin
LOGGER_EBIN = $(shell elixir -e 'IO.puts(:code.lib_dir(:logger))')/ebin
PLT = .dialyzer/$(shell elixir -e 'IO.puts(["elixir-", System.version(), "-otp-", System.otp_release(), "-mix.plt"])')

dialyzer:
	@mkdir -p .dialyzer
	@plt=$(PLT); \
	test -f $$plt || { echo "building $$plt, once; this takes some minutes"; \
	  dialyzer --quiet -pa $(ELIXIR_EBIN) --build_plt --output_plt $$plt.tmp --apps erts kernel stdlib -r $(ELIXIR_EBIN) $(MIX_EBIN) $(LOGGER_EBIN); \
	  test $$? -ne 1 && mv $$plt.tmp $$plt; } && \
	dialyzer -pa $(ELIXIR_EBIN) --plt $$plt -Wunmatched_returns _build/dev/lib/netlink_port/ebin

# $(call install,PACKAGES): installs those that are missing, and fails if that is not possible.
install = missing=""; \
	for package in $(1); do \
	  dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q '^install ok' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  if [ "$$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo=sudo; \
	  else echo "not root and no sudo; install these Debian packages and try again:$$missing" >&2; exit 1; fi; \
	  $$sudo apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null || exit 1; \
	fi

counterparts:
	@( $(call install,$(COUNTERPARTS)) ) || echo "not all of these are there, what compares with them is skipped: $(COUNTERPARTS)" >&2

setup:
	@$(call install,$(PACKAGES))
	@command -v cargo >/dev/null || { \
	  echo "cargo is missing; install Rust 1.85 or newer: https://rustup.rs, or 'apt-get install cargo' on Debian 13" >&2; exit 1; }

clean:
	rm -rf _build target dist fuzz/target priv/netlink_port .dialyzer doc
