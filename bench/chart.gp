# chart.gp DATA SVG ROWS: draws a bar for each row: the ratio on a logarithmic axis, its spread, and the goal.
# A row: index ratio low high goal label "name"; `label` is the position of the text of the ratio.

set terminal svg size 860, 60 + 34 * ARG3 font "sans-serif,13" noenhanced
set output ARG2
set logscale x 2
set xrange [0.2:14]
set xtics nomirror ("¼" 0.25, "½" 0.5, "1" 1, "2" 2, "4" 4, "8" 8)
set yrange [-0.6:ARG3 - 0.4]
set ytics nomirror scale 0
set border 1
set lmargin 34
set rmargin 14
set tmargin 3
set bmargin 3
set key at screen 0.98, screen 0.985 right top horizontal maxrows 1 samplen 1.2 width 2
set xlabel "time beside OTP's socket in the VM, logarithmic: less is better" offset 0, 0.4
set arrow 1 from 1, -0.6 to 1, ARG3 - 0.4 nohead lc rgb "#8b949e" lw 1.5 dt 2
min(a, b) = a < b ? a : b
max(a, b) = a > b ? a : b

plot ARG1 using (1):1:(min($2, 1)):(max($2, 1)):($1 - 0.28):($1 + 0.28):ytic(7) \
       with boxxyerror fillstyle solid 0.85 noborder lc rgb "#3b82c4" title "ours / baseline", \
     "" using 2:1:3:4 with xerrorbars pt 0 lw 1.5 lc rgb "#6e7781" title "quartiles", \
     "" using 5:1 with points pt 9 ps 0.9 lc rgb "#d0661a" title "goal", \
     "" using 6:1:(sprintf("%.2f", $2)) with labels left \
       tc rgb "#000000" notitle
