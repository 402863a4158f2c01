# The package and JupyterLab on a CPU:
#   docker build -t amir-grpo .
#   docker run --rm -p 8888:8888 amir-grpo                              JupyterLab with the notebooks
#   docker run --rm amir-grpo python -m amir_grpo reproduce             a whole reproduction
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/amir-grpo
COPY . .
RUN .binder/postBuild
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--allow-root", "--no-browser", "--notebook-dir=notebooks"]
