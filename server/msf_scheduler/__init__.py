"""Jobs in Redis: admission, leases and results, and the policy that forms step batches."""
