# The demo in a container, without a GPU:
#
#   docker build -t prmbench .
#   docker run --rm prmbench                                       # prmbench demo
#   docker run --rm -v "$PWD:/data" prmbench eval --model random --data /data/traces.jsonl --out /data/runs
#
#   TORCH_INDEX  an index to take torch from; that of a CUDA version for a GPU

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/prmbench
COPY requirements.lock /src/
# torch goes first, so that nothing else chooses its build.
RUN /opt/prmbench/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "$(grep '^torch==' /src/requirements.lock)"
COPY pyproject.toml README.md LICENSE /src/
COPY prmbench /src/prmbench
RUN /opt/prmbench/bin/pip install --no-cache-dir -c /src/requirements.lock "/src[train,verify,openai,serve]"

FROM python:${PYTHON}-slim
RUN useradd --create-home --home-dir /prmbench --uid 1000 prmbench
COPY --from=build /opt/prmbench /opt/prmbench
ENV PATH=/opt/prmbench/bin:$PATH
USER prmbench
WORKDIR /prmbench
ENTRYPOINT ["prmbench"]
CMD ["demo"]
