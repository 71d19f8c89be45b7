#!/usr/bin/env bash
# In a manylinux image: what the variant named by VARIANT is compiled with. Never run yet.
set -euo pipefail
case "${VARIANT:-cpu}" in
    cuda)
        dnf -y install dnf-plugins-core
        dnf config-manager --add-repo https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo
        dnf -y install cuda-toolkit-12-8
        ln -sfn /usr/local/cuda-12.8/bin/nvcc /usr/local/bin/nvcc
        ;;
    vulkan)
        dnf -y install vulkan-headers vulkan-loader-devel glslc spirv-headers-devel ||
            { dnf -y install epel-release && dnf -y install vulkan-headers vulkan-loader-devel glslc spirv-headers-devel; }
        ;;
esac
