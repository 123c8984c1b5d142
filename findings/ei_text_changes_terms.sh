#!/bin/sh
# The text forms of terms in the C library of OTP (erl_interface) are not the forms of Erlang, and change terms.
# erl_call(1) is made of them: it reads the arguments of -a by ei_x_format, and prints results by ei_print_term.
#
#   ei_x_format    returns 0, but a float with an exponent is two terms: [1.0e3] becomes [1.0e3,3], so
#                  `erl_call -a 'm f [1.0e3]'` calls m:f/2. Integers beyond 64 bits become the largest or the smallest
#                  of 64 bits. Of 16#ff it reads 16, and nothing of the rest
#   ei_print_term  prints floats with six digits after the point, so 1.0e-7 is 0.000000. Quotes in a string are not
#                  escaped, and the byte 233 is \xffffffe9. It stops in front of an atom with a character beyond
#                  Latin-1, and returns an error, when half of the term has been printed
#
# Seen with erl_interface 5.3 of OTP 25.2.3. Needs erl and gcc.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
root=$(erl -noshell -eval 'io:format("~s", [code:root_dir()]), halt().')
library=$(ls -d "$root"/lib/erl_interface-*)
basename "$library"

cat >terms.c <<'C'
#include <ei.h>
#include <stdio.h>

int main(int count, char **texts) {
  char term[1024];
  ei_init();
  for (int i = 1; i < count; i++) {
    ei_x_buff made;
    ei_x_new_with_version(&made);
    int result = ei_x_format_wo_ver(&made, texts[i]);
    printf("%s %d ", texts[i], result);
    for (int at = 0; at < made.index; at++) printf("%02X", (unsigned char)made.buff[at]);
    puts("");
  }
  while (fgets(term, sizeof term, stdin)) { /* a term, in hexadecimal */
    char bytes[512];
    int length = 0, used, at = 1;
    unsigned int byte;
    for (char *from = term; sscanf(from, "%2x%n", &byte, &used) == 1; from += used) bytes[length++] = (char)byte;
    printf("printed: ");
    int result = ei_print_term(stdout, bytes, &at);
    puts(result < 0 ? " (an error)" : "");
  }
  return 0;
}
C
gcc -o terms terms.c -I"$library/include" -L"$library/lib" -lei -lpthread
erl -noshell -eval '
  [io:format("~s~n", [binary:encode_hex(term_to_binary(Term))])
   || Term <- [1.0e-7, 123456789.125, [97, $", 98], [1, 233], {left, [955], list_to_atom([955]), right}]],
  halt().' >from_otp
./terms '[1.0e3]' 12345678901234567890 -9223372036854775809 '16#ff' <from_otp >made
seen=$(erl -noshell -eval '
  {ok, Made} = file:read_file("made"),
  [case string:lexemes(Line, " ") of
     [<<"printed:">> | _] -> io:format("~s~n", [Line]);
     [Text, <<"0">>, Term] -> io:format("~s is read as ~0p~n", [Text, binary_to_term(binary:decode_hex(Term))])
   end || Line <- string:lexemes(Made, "\n")],
  halt().')
printf '%s\n' "$seen"
cat >expected <<EXPECTED
[1.0e3] is read as ${EXPECTED:-[1.0e3,3]}
12345678901234567890 is read as 9223372036854775807
-9223372036854775809 is read as -9223372036854775808
16#ff is read as 16
printed: 0.000000
printed: 123456789.125000
printed: "a"b"
printed: "\\x1\\xffffffe9"
printed: {left, [955],  (an error)
EXPECTED
[ "$seen" = "$(cat expected)" ] || { echo "changed, expected:" >&2; cat expected >&2; exit 1; }
