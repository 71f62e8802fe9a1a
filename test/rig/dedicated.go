// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"maps"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// Dedicated says how a proxy is run that serves one pod from inside of it.
type Dedicated struct {
	Namespace string            // of the workload, whose service account has the pod's name
	Env       map[string]string // over what the rig sets
	// Wrap is a command that runs what follows it, to take away privileges;
	// empty: the proxy is run as it is.
	Wrap []string
}

// StartDedicated runs a proxy in dedicated mode in a pod. It has no agent.
// What leads the pod's connections to it is the caller's affair. It returns at
// once; see [Proxy.AwaitReady].
func (m *Mesh) StartDedicated(pod *netlab.Pod, opts Dedicated) (*Proxy, error) {
	p := &Proxy{mesh: m, node: pod.Node(), host: pod.Host, wrap: opts.Wrap, Output: NewOutput()}
	p.env = map[string]string{
		"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": opts.Namespace + "/" + pod.Name() + "/" + pod.Name(),
		"NODE_NAME": pod.Node().Name(), "LOCAL_XDS_PATH": m.state, "XDS_ADDRESS": "",
		"FAKE_CA": "true", "EMBEDDED_CA_DIR": m.CADir(DefaultCA), "RESOLV_CONF": m.resolv,
	}
	maps.Copy(p.env, opts.Env)
	m.add(p)
	return p, p.Restart()
}
