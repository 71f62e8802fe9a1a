// SPDX-License-Identifier: Apache-2.0

// Labd runs the plain servers that tests and the demo talk to; see
// package serve for its flags.
package main

import (
	"os"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

func main() { os.Exit(serve.Main(os.Args[1:])) }
