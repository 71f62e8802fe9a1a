// SPDX-License-Identifier: Apache-2.0

// Package route answers two questions. On the way out of a pod: given who
// opened a connection and where it was bound, what is the next hop
// ([Decide])? On the way in: may this request be for this pod, and which of
// its ports does it mean ([Inbound])?
//
// It is pure. It opens no socket, reads no clock, writes no log and draws no
// random number; its inputs are a [mesh.View] and the arguments. If a name has
// to be looked up first, or the control plane to be asked, it says for what, and
// is asked again with the answer.
// The steps it took come back in words when asked for, which is what
// /debug/route prints.
//
// The cost of a decision depends on the endpoints of the service that was
// dialled, never on the number of workloads in the mesh.
//
// It imports internal/mesh and internal/identity, and nothing else of ours.
package route
