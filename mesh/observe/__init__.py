"""What a running process tells: logs and traces."""
