"""What octet removes in the course of time, and what it never does."""
