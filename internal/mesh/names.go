// SPDX-License-Identifier: Apache-2.0

package mesh

// The names of the enumerations stand here together: they are what the local
// file reads and config_dump shows (contract 8.9, 13.4).

// String is TCP or HBONE.
func (p Protocol) String() string { return name(p, "TCP", "HBONE") }

// String is Standard or HostNetwork.
func (m NetworkMode) String() string { return name(m, "Standard", "HostNetwork") }

// String is Healthy or Unhealthy.
func (s Status) String() string { return name(s, "Healthy", "Unhealthy") }

// String is the lower-case name that baggage keys hold: deployment, cronjob,
// pod or job (contract 4.5).
func (t WorkloadType) String() string { return name(t, "deployment", "cronjob", "pod", "job") }

// String is NONE or PROXY.
func (k TunnelKind) String() string { return name(k, "NONE", "PROXY") }

// String is the name of the dimension: Region, Zone, Subzone, Node, Cluster
// or Network.
func (s Scope) String() string {
	return name(s, "", "Region", "Zone", "Subzone", "Node", "Cluster", "Network")
}

// String is Standard, Strict, Failover or Passthrough.
func (m BalanceMode) String() string {
	return name(m, "Standard", "Strict", "Failover", "Passthrough")
}

// String is OnlyHealthy or AllowAll.
func (p HealthPolicy) String() string { return name(p, "OnlyHealthy", "AllowAll") }

// String is IPv4, IPv6, Dual, or Automatic, which the local file cannot say
// and config_dump leaves out.
func (f IPFamilies) String() string { return name(f, "Automatic", "IPv4", "IPv6", "Dual") }

// String is Public or Namespace.
func (v Visibility) String() string { return name(v, "Public", "Namespace") }

// String is Global, Namespace or WorkloadSelector.
func (s PolicyScope) String() string { return name(s, "Global", "Namespace", "WorkloadSelector") }

// String is Allow or Deny.
func (a Action) String() string { return name(a, "Allow", "Deny") }

// String is Exact, Prefix, Suffix or Presence.
func (k MatchKind) String() string { return name(k, "Exact", "Prefix", "Suffix", "Presence") }

func name[T ~uint8](v T, names ...string) string {
	if int(v) >= len(names) {
		return "unknown"
	}
	return names[v]
}
