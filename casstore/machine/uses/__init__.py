"""What this machine uses of stores: when it read which model last, and which refs its running pipelines need."""
