"""Conclave: pre-trains Mixtral-class mixture-of-experts models with expert parallelism and sharded data parallelism."""
