# Triton with this backend:
#
#   docker build -t triton-diffusion .
#   docker run --gpus all --rm -p 8000:8000 -p 8001:8001 -p 8002:8002 -v $PWD/model_repository:/models \
#     triton-diffusion tritonserver --model-repository=/models
#
# Without a GPU: docker build --build-arg CUDA=0 ... leaves libtorch's CUDA libraries out (3 GB).
# For a SageMaker multi-model endpoint, give SageMaker's Triton image as TRITON_IMAGE; its entry point does not change.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.06-py3
ARG RUST_IMAGE=rust:1.95.0-bookworm

FROM ${RUST_IMAGE} AS build
ARG CUDA=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The packages first: they change less often than the source.
COPY tools/setup.sh tools/common.sh tools/requirements.txt tools/
RUN tools/setup.sh
COPY . .
RUN make backend CUDA="${CUDA}"

FROM ${TRITON_IMAGE}
COPY --from=build /src/dist/backends/diffusion /opt/tritonserver/backends/diffusion
# The command, with the gateway. It finds libtorch in ../backends/diffusion.
COPY --from=build /src/dist/bin/triton-diffusion /opt/tritonserver/bin/triton-diffusion
COPY LICENSE /opt/tritonserver/backends/diffusion/LICENSE
