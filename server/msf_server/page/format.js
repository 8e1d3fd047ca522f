// Numbers as people read them.

export const milliseconds = (ms) => (ms >= 10000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

export const bytes = (count) => (count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e3).toFixed(count < 1e4 ? 1 : 0)} kB`);

export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

export const settingsText = ({ num_steps, guidance_scale, negative_prompt }) =>
  `${num_steps} steps, guidance ${guidance_scale}${negative_prompt ? `, away from ${negative_prompt}` : ""}`;
