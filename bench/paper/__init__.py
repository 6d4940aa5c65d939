"""The paper's table: baselines trained here, compressed, fine-tuned, beside the published figures."""
