// SPDX-License-Identifier: Apache-2.0

// Package xds writes the picture of the mesh into a [mesh.Store], from two
// sources that may run at once.
//
// The control plane: [Open] follows it over delta xDS (contract 8.1-8.8). The
// conversation is xds/delta's; here resources are translated, refused by name
// where they are wrong, and applied, in steps short enough for readers.
//
// A local document, for running without a control plane and for development
// (contract 8.9): [ParseLocal] reads it, [Static.Apply] brings a store from one
// version of it to the next, and [OpenLocal] does both and follows the file as
// it changes. What both speak of is as the control plane says.
//
// The package translates and applies; it decides nothing about connections.
// It imports internal/mesh and is imported by cmd only: dataplane and dnsproxy
// see what it wrote, through the store.
package xds
