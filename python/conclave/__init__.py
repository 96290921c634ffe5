"""Conclave: pre-training of Mixtral-class mixture-of-experts models with expert parallelism and sharded data parallelism."""
