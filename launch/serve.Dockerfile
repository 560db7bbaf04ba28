# docker build -f launch/serve.Dockerfile -t IMAGE . && docker push IMAGE
#
# The image of launch/gke_serve.yaml and launch/gke_gateway.yaml: mdlm_jax's server. Run from the root
# of the repository. Without --build-arg it is for NVIDIA GPUs; EXTRAS=serve is for processors alone,
# serve,tpu,gcs for TPUs. On one machine, with a run in runs/quickstart:
#   docker run --init --gpus=all -p 8000:8000 -v "$PWD/runs:/runs:ro" IMAGE --workdir=/runs/quickstart
FROM python:3.12-slim
ARG EXTRAS=serve,gpu,gcs
WORKDIR /mdlm_jax
COPY pyproject.toml README.md LICENSE ./
COPY mdlm_jax mdlm_jax
COPY configs configs
RUN pip install --no-cache-dir ".[$EXTRAS]" && useradd --create-home --uid 1000 mdlm
USER 1000
WORKDIR /home/mdlm
EXPOSE 8000
# Alive from when all is compiled. Kubernetes has probes of its own.
HEALTHCHECK --start-period=15m --interval=10s --timeout=5s --retries=6 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "mdlm_jax.serve", "--host=0.0.0.0"]
