# The commands of lmnotes on a CPU, in the versions of constraints.txt.
#   docker build -t lmnotes .
#   docker run --rm -v "$PWD/runs:/work/runs" lmnotes compare --models standard,reversible --datasets prose
FROM python:3.11-slim
WORKDIR /src
COPY constraints.txt settings.ini setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY lmnotes lmnotes
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch torchvision \
    && pip install --no-cache-dir -c constraints.txt .
WORKDIR /work
ENTRYPOINT ["lmnotes"]
CMD ["--help"]
