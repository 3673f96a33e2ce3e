# Torch's wheels bring CUDA's libraries, the host its driver: the image needs neither nvcc nor a CUDA base.
# --build-arg BASE=IMAGE starts from another one, such as one of NVIDIA's or PyTorch's with Python 3.11 to 3.13; a torch in it that is
# recent enough stays.
ARG BASE=python:3.12-slim
FROM ${BASE}

# gcc is there for compute.compile=true alone; git, so that records name the commit. Their versions are the base's.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends git gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory '*'
WORKDIR /repro
COPY . .
# hadolint ignore=DL3013
RUN python3 -m pip install --no-cache-dir nox --editable '.[energy]'
CMD ["ofa-diffusion", "--help"]
