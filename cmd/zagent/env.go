// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/cni"
)

// An environment is what zagent reads of its own.
type environment struct {
	node       string // NODE_NAME
	kubeconfig string // KUBECONFIG
	cni        cni.Env
}

// readEnvironment is the one place that does.
func readEnvironment() environment {
	return environment{
		node: os.Getenv("NODE_NAME"), kubeconfig: os.Getenv("KUBECONFIG"),
		cni: cni.Env{
			Command: os.Getenv("CNI_COMMAND"), ContainerID: os.Getenv("CNI_CONTAINERID"),
			NetNS: os.Getenv("CNI_NETNS"), Args: os.Getenv("CNI_ARGS"),
		},
	}
}
