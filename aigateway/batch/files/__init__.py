"""A batch from a file to a file, that can be killed at any moment and goes on where it was.

`lines` reads the input, `records` says what is written, `journal` writes it so that it survives,
`index` remembers what is done without holding it in memory, `limits` says when enough is enough,
`totals` adds up, `estimate` says beforehand what it would cost, and `job` puts them together.

How it looks on a screen, and what the options are called, is the command line's affair.
"""
