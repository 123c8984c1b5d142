# make demo    the main job, on real namespaces (root)
# make test    the Rust and the ExUnit suites
# make check   formatting, lints, warnings as errors, Dialyzer
#
# Each installs what it lacks from Debian's packages first.

export LC_ALL := C.UTF-8
export PATH := $(HOME)/.cargo/bin:$(PATH)

PACKAGES := elixir erlang-nox erlang-dev erlang-dialyzer erlang-proper iproute2 libcap2-bin procps gcc libc6-dev

.PHONY: demo test check dialyzer setup clean

demo: setup
	@mix compile
	@mix run examples/demo.exs

test: setup
	cargo test --release --locked
	mix test

check: setup
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- --deny warnings
	mix format --check-formatted
	MIX_ENV=dev mix compile --force --warnings-as-errors
	MIX_ENV=test mix compile --force --warnings-as-errors
	@$(MAKE) --no-print-directory dialyzer

# The PLT of OTP and Elixir is built once and kept, by version.
ELIXIR_EBIN = $(shell elixir -e 'IO.puts(:code.lib_dir(:elixir))')/ebin
LOGGER_EBIN = $(shell elixir -e 'IO.puts(:code.lib_dir(:logger))')/ebin
PLT = .dialyzer/$(shell elixir -e 'IO.puts(["elixir-", System.version(), "-otp-", System.otp_release(), ".plt"])')

dialyzer:
	@mkdir -p .dialyzer
	@plt=$(PLT); \
	test -f $$plt || { echo "building $$plt, once; this takes some minutes"; \
	  dialyzer --quiet -pa $(ELIXIR_EBIN) --build_plt --output_plt $$plt.tmp --apps erts kernel stdlib -r $(ELIXIR_EBIN) $(LOGGER_EBIN); \
	  test $$? -ne 1 && mv $$plt.tmp $$plt; } && \
	dialyzer -pa $(ELIXIR_EBIN) --plt $$plt -Wunmatched_returns _build/dev/lib/netlink_port/ebin

setup:
	@missing=""; \
	for package in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q '^install ok' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  if [ "$$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo=sudo; \
	  else echo "not root and no sudo; install these Debian packages and try again:$$missing" >&2; exit 1; fi; \
	  $$sudo apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null || exit 1; \
	fi
	@command -v cargo >/dev/null || { \
	  echo "cargo is missing; install Rust 1.85 or newer: https://rustup.rs, or 'apt-get install cargo' on Debian 13" >&2; exit 1; }

clean:
	rm -rf _build target priv/netlink_port .dialyzer
