"""Jobs: a batch from a file to a file. A job can be killed at any moment and resumed later.

`input` reads the lines, `survey` checks them and estimates the cost, `output` writes records,
`index` finds them again, `totals` adds them up and applies limits, `schema` checks structured
answers, `table` makes a CSV or Parquet file of the records, `paths` ties the files together, and
`job` runs it all. The command line stands in `aigateway/cli/batch`.
"""
