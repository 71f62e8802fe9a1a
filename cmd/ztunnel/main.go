// SPDX-License-Identifier: Apache-2.0

// FIPS mode leaves crypto/tls with exactly the two TLS 1.3 suites that the
// mesh allows, TLS_AES_128_GCM_SHA256 and TLS_AES_256_GCM_SHA384, for which it
// has no other knob (docs/decisions).
//
//go:debug fips140=on

// Ztunnel is the node proxy of an Istio ambient mesh. This file only hands the
// process's surroundings to package app, which knows what to do with them.
package main

import (
	"os"

	"github.com/ztunnel-go/ztunnel/cmd/ztunnel/app"
)

func main() {
	os.Exit(app.Main(os.Args, app.ProcessEnv(), os.Stdout, os.Stderr))
}
