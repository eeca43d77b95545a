"""Evidence to judgement, pure: counters, scores, states, warmup, weights. ``now`` is an argument."""
