# docker buildx bake -f deploy/docker/docker-bake.hcl, from the root of the repository. Variables come from the
# environment; deploy/README.md tells how to find the digest and the indexes.

variable "PYTHON_IMAGE" {
  description = "Python 3.11 on Debian, by digest: name@sha256:..."
  default     = ""
  validation {
    condition     = length(regexall("@sha256:[0-9a-f]{64}$", PYTHON_IMAGE)) == 1
    error_message = "PYTHON_IMAGE must name its digest, ...@sha256:...; deploy/README.md tells how to find it."
  }
}

variable "TORCH_INDEX_CPU" {
  description = "Index of torch's CPU builds; empty: the default index, where that serves one."
  default     = ""
}

variable "TORCH_INDEX_CUDA" {
  description = "Index of torch's CUDA builds; empty: the default index, where that serves one."
  default     = ""
}

variable "REPOSITORY" {
  description = "What images are called, with the registry to push to."
  default     = "preceptor"
}

variable "VERSION" {
  default = "0.1.0"
}

variable "REVISION" {
  description = "Commit; git rev-parse HEAD"
  default     = "unknown"
}

variable "CREATED" {
  description = "Time of that commit; git log -1 --format=%cI"
  default     = "unknown"
}

variable "PIP_CONFIG" {
  description = "A pip.conf that names a mirror, with its credentials; it reaches the build as a secret."
  default     = ""
}

group "default" {
  targets = ["service", "service-cuda", "trainer"]
}

target "image" {
  context    = "."
  dockerfile = "deploy/docker/Dockerfile"
  platforms  = ["linux/amd64"]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
    VERSION      = VERSION
    REVISION     = REVISION
    CREATED      = CREATED
  }
  secret = PIP_CONFIG == "" ? [] : ["type=file,id=pip,src=${PIP_CONFIG}"]
  # Statements beside the image: what is in it, and how it was built.
  attest = ["type=sbom", "type=provenance,mode=max"]
}

target "service" {
  inherits = ["image"]
  target   = "service"
  args     = { TORCH_INDEX = TORCH_INDEX_CPU }
  tags     = ["${REPOSITORY}:${VERSION}"]
}

target "service-cuda" {
  inherits = ["image"]
  target   = "service-cuda"
  args     = { TORCH_INDEX = TORCH_INDEX_CUDA }
  tags     = ["${REPOSITORY}:${VERSION}-cuda"]
}

target "trainer" {
  inherits = ["image"]
  target   = "trainer"
  args     = { TORCH_INDEX = TORCH_INDEX_CPU }
  tags     = ["${REPOSITORY}-trainer:${VERSION}"]
}
