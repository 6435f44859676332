"""`aigateway batch`: the command, the display of a running job, its summary and its report."""
