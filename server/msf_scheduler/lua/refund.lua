-- Take back the samples of a charged request that was not admitted; as a request it still counts.
for field, count in pairs({day_samples = args.samples, samples = args.samples, sample_steps = args.sample_steps}) do
  redis.call('HINCRBY', KEYS[1], field, -count)
end
