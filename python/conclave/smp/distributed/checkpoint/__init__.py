"""torch.sagemaker.distributed.checkpoint."""
