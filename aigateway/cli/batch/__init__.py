"""`aigateway batch`: what people see of a job, while it runs and afterwards.

`screen` shows it while it runs, `summary` and `report` when it is over; `page` and `charts` are the
report as a web page, `pace` says how quick it is just now, `figures` how numbers are written.
"""
