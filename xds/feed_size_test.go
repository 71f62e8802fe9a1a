// SPDX-License-Identifier: Apache-2.0

//go:build !race

package xds

// largeWorkloads is the size of a mesh that has to arrive in one message.
const largeWorkloads = 100_000
