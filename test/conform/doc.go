// SPDX-License-Identifier: Apache-2.0

// Package conform plays scenarios against a ztunnel, whoever made it, and says
// where it does something else than the contract.
//
// A scenario is a text file that describes one behaviour: what the mesh is, what
// is done, what has to be seen. It knows a proxy by its public surface alone:
// environment, control plane (delta xDS), node agent (ZDS), sockets, HTTP pages,
// DNS, lines on its standard output, signals and exit codes. docs/conformance.md
// has the language.
//
//	word.go script.go reader.go   a file becomes a Script, or an error with its line
//	state*.go                     the mesh of a scenario, as resources to push
//	stage.go                      what scenarios are played on
//	player.go suite.go            playing one; playing all, grouped by environment
//	verb_*.go                     the verbs of steps, and what each looks at
//	peer*.go                      the other end of a tunnel, frame by frame
//
// Stages are the packages below: lab runs a binary on nodes made of network
// namespaces, fake is a model of a proxy in this process, with faults that can
// be switched on one at a time to prove that the scenarios would notice.
package conform
