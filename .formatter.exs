[
  inputs: ["{mix,build}.exs", ".formatter.exs", "{elixir,test,examples,bench}/**/*.{ex,exs}"],
  line_length: 98
]
