# The worker on NVIDIA GPUs, over NVIDIA's TensorRT image: docker build --file docker/gpu.Dockerfile .
ARG GPU_IMAGE=nvcr.io/nvidia/tensorrt:25.10-py3

FROM ${GPU_IMAGE}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# TensorRT's Python package is the image's own, so the virtual environment sees the system's packages. All others, torch for
# CUDA and its libraries included, come by their hashes: the lock is for the image's Python 3.12.
RUN python3 -m venv --system-site-packages /opt/venv
COPY requirements/gpu.lock ./
RUN /opt/venv/bin/pip install --quiet --require-hashes --no-deps --requirement gpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY engine engine
RUN /opt/venv/bin/pip install --quiet --no-deps . && rm -rf /src
COPY model_repo /srv/model_repo
RUN groupadd --system --gid 10001 msf && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/msf --create-home msf \
 && mkdir -p /var/cache/msf && chown msf:msf /var/cache/msf
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MSF_LOG_FORMAT=json \
    MSF_MODEL_REPO=/srv/model_repo MSF_CACHE_DIR=/var/cache/msf MSF_WORKER_METRICS_PORT=9100
WORKDIR /var/lib/msf
USER 10001:10001
EXPOSE 9100
VOLUME /var/cache/msf
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=10s --start-period=900s --retries=6 CMD ["msf", "health", "http://127.0.0.1:9100/ready"]
ENTRYPOINT ["msf"]
CMD ["worker"]
