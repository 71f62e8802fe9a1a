// SPDX-License-Identifier: Apache-2.0

// Package xds writes the picture of the mesh into a [mesh.Store]. What is here
// now is the local file: a YAML or JSON document with workloads, services and
// policies, for running without a control plane and for development
// (contract 8.9). [ParseLocal] reads it, [Static.Apply] brings a store from one
// version of it to the next, and [OpenLocal] does both and follows the file as
// it changes.
//
// The package translates and applies; it decides nothing about connections.
// It imports internal/mesh and is imported by cmd only: dataplane and dnsproxy
// see what it wrote, through the store.
package xds
