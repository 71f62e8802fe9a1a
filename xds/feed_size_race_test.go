// SPDX-License-Identifier: Apache-2.0

//go:build race

package xds

// largeWorkloads is smaller where each step costs ten.
const largeWorkloads = 20_000
