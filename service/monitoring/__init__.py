"""What people see of a running octet: metrics, logs, traces, live figures."""
