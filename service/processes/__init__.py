"""Processes and what the machine gives them: who starts whom, locks, sockets, processors, memory."""
