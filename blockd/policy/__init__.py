"""What the policy is: from inputs to a snapshot, and why a name gets what it gets."""
