"""What tensors may be made of others by: each rule proposes operations for a target, by its sketch and the base's."""
