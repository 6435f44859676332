"""Jobs: a batch from a file to a file. A job can be killed at any moment and resumed later.

`lines` reads the input, `survey` checks it and estimates the cost, `records` writes results,
`index` finds them again, `totals` adds them up and applies limits, `paths` ties the files together,
and `job` runs it all. The command line stands in `aigateway/cli/batch`.
"""
