// Request mix of `msf load` for k6, as an open loop: requests leave at RATE per second whatever became of earlier ones.
//
//   k6 run --env RATE=5 --env DURATION=60s docker/k6.js
import http from 'k6/http';
import { check } from 'k6';

const URL = __ENV.MSF_URL || 'http://127.0.0.1:8000';
const HEADERS = Object.assign(
  { 'Content-Type': 'application/json' },
  __ENV.MSF_API_KEY ? { Authorization: `Bearer ${__ENV.MSF_API_KEY}` } : {},
);
const STEPS = [4, 4, 4, 4, 20, 20, 20, 20, 100];

export const options = {
  scenarios: {
    images: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 5),
      timeUnit: '1s',
      duration: __ENV.DURATION || '60s',
      preAllocatedVUs: 200,
    },
  },
  thresholds: { http_req_failed: ['rate<0.01'], http_req_duration: ['p(99)<5000'] },
};

export function setup() {
  return http.get(`${URL}/v1/models`, { headers: HEADERS }).json('data.0.labels');
}

export default function (labels) {
  const body = {
    prompt: labels[Math.floor(Math.random() * labels.length)],
    n: Math.random() < 0.9 ? 1 : 4,
    num_steps: STEPS[Math.floor(Math.random() * STEPS.length)],
    cache: false,
  };
  const answer = http.post(`${URL}/v1/images/generations`, JSON.stringify(body), { headers: HEADERS, timeout: '300s' });
  check(answer, { 'an image came back': (response) => response.status === 200 });
}
