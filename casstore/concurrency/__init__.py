"""What several threads, and child processes after a fork, need: pools, fan-out, reusable memory."""
