"""Request mix of `msf load` for Locust.

    locust --locustfile docker/locustfile.py --host http://127.0.0.1:8000

Locust's users wait for a response before they send the next request (a closed loop), so a stalled server receives fewer
requests and its latencies look better than they are. `msf load` keeps to its rate; use Locust to explore.
"""

import os
import random

from locust import HttpUser, between, task

HEADERS = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("MSF_API_KEY")) else {}


class ImageUser(HttpUser):
    wait_time = between(0.1, 1.0)

    def on_start(self):
        self.labels = self.client.get("/v1/models", headers=HEADERS).json()["data"][0]["labels"]

    @task
    def generate(self):
        steps = random.choices((4, 20, 100), (4, 4, 1))[0]
        body = {
            "prompt": random.choice(self.labels),
            "n": random.choices((1, 4), (9, 1))[0],
            "num_steps": steps,
            "cache": False,
        }
        self.client.post("/v1/images/generations", json=body, headers=HEADERS, name=f"{steps} steps")
