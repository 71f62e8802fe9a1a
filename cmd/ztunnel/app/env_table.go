// SPDX-License-Identifier: Apache-2.0

package app

// A Variable is one of the environment's, as docs/config.md tells of it. A name
// that ends in * stands for all that begin so.
type Variable struct {
	Name, Kind, Default, About string
	// Ours says that ztunnel has no such variable.
	Ours bool
}

// A Subject is some variables that belong together.
type Subject struct {
	Title     string
	Variables []Variable
}

// Variables are all that are read, by subject. A test holds the list, the kinds
// and the defaults to what [Load] reads.
func Variables() []Subject {
	return []Subject{
		{"What runs", variablesOfRun()}, {"Who and where", variablesOfPlace()}, {"Capture", variablesOfCapture()},
		{"Control plane and certificates", variablesOfControl()}, {"Connections", variablesOfConnections()},
		{"DNS", variablesOfDNS()}, {"What is shown", variablesOfPages()},
	}
}

func variablesOfRun() []Variable {
	return []Variable{
		{Name: "PROXY_MODE", Kind: "text", Default: "shared", About: "`shared`: one proxy for a node's pods; `dedicated`: one for one workload, in its namespace"},
		{Name: "PROXY_WORKLOAD_INFO", Kind: "text", About: "with `dedicated`, the workload: namespace/name/serviceaccount"},
		{Name: "ENABLE_PROXY", Kind: "bool", Default: "true", About: "whether TCP is proxied; `false` only with `dedicated`"},
		{Name: "PROXY_CONFIG", Kind: "text", About: "a ProxyConfig as YAML or JSON, over the one in ./etc/istio/config/mesh: discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata"},
		{Name: "CONNECTION_TERMINATION_DEADLINE", Kind: "duration", Default: "5s", About: "how long open connections may outlive a request to stop; 0 ends them at once"},
		{Name: "TERMINATION_GRACE_PERIOD_SECONDS", Kind: "number", About: "Kubernetes' own, of which the former is a little less where that is unset"},
		{Name: "ZTUNNEL_WORKER_THREADS", Kind: "text", About: "threads that run at the same time: `N` (0: all CPUs) or `P%` of the CPUs; else the mesh's `concurrency`, else the limit below, else a quarter of the CPUs and 2 at least"},
		{Name: "ZTUNNEL_RESOURCE_CPU_LIMIT", Kind: "quantity", About: "the container's CPU limit: 2, 1.5, 500m; rounded up"},
		{Name: "ZTUNNEL_RESOURCE_CPU_REQUEST", Kind: "quantity", About: "its CPU request, the least number of threads"},
		{Name: "ZTUNNEL_CPU_LIMIT", Kind: "number", About: "the number of CPUs, where no limit is given above; 0: as many as there are"},
		{Name: "TLS_ENGINE", Kind: "choice", Default: "reactor", Ours: true, About: "who carries tunnels: `reactor` (event loops) or `std` (goroutines over crypto/tls)"},
	}
}

func variablesOfPlace() []Variable {
	return []Variable{
		{Name: "NODE_NAME", Kind: "text", About: "the node: which workloads are local; unset: all"},
		{Name: "NETWORK", Kind: "text", About: "the network the node is in"},
		{Name: "CLUSTER_ID", Kind: "text", Default: "Kubernetes", About: "the cluster, told to the control plane"},
		{Name: "ISTIO_META_CLUSTER_ID", Kind: "text", About: "the same, and goes first"},
		{Name: "POD_NAME", Kind: "text", About: "the proxy's own pod; with the next two set, tunnels to it are served too"},
		{Name: "POD_NAMESPACE", Kind: "text", About: "its namespace"},
		{Name: "SERVICE_ACCOUNT", Kind: "text", About: "its service account"},
		{Name: "TRUST_DOMAIN", Kind: "text", Default: "cluster.local", About: "the trust domain of its identity"},
		{Name: "INSTANCE_IP", Kind: "text", Default: "1.1.1.1", About: "part of the xDS node id"},
		{Name: "ISTIO_META_*", Kind: "text", About: "the xDS node's metadata, without the prefix"},
		{Name: "ISTIO_METAJSON_*", Kind: "JSON", About: "the same, as JSON; what is none is left out with a line in the log"},
	}
}

func variablesOfCapture() []Variable {
	return []Variable{
		{Name: "CAPTURE", Kind: "choice", Default: "auto", Ours: true, About: "`auto`: istio-cni's rules where a pod has them, else eBPF, else the pod is refused; `ebpf`; `istio-cni`"},
		{Name: "INPOD_UDS", Kind: "text", Default: "/var/run/ztunnel/ztunnel.sock", About: "the node agent's socket"},
		{Name: "INPOD_PORT_REUSE", Kind: "bool", Default: "true", About: "SO_REUSEPORT on listeners in pods, where istio-cni captures"},
		{Name: "BPF_PIN_DIR", Kind: "text", Default: "/sys/fs/bpf/ztunnel", Ours: true, About: "where programs and maps are pinned; on a bpf file system"},
		{Name: "CGROUP_ROOT", Kind: "text", Ours: true, About: "the cgroup that programs are attached to; unset: the root of cgroup v2"},
		{Name: "HOST_NETNS", Kind: "text", Ours: true, About: "a namespace that stands in for the machine's, in laboratories"},
		{Name: "PROBE_SCOPE", Kind: "choice", Default: "host", Ours: true, About: "whose connections reach applications past policy: every socket of the `host`, or `kubelet`'s"},
		{Name: "PACKET_MARK", Kind: "number", Default: "1337", About: "the mark of the proxy's own sockets; 0: none. No default with `dedicated`"},
		{Name: "ENABLE_ORIG_SRC", Kind: "bool", About: "whether applications see their clients' addresses; unset: where that is possible"},
		{Name: "IPV6_ENABLED", Kind: "bool", Default: "true", About: "`false`: listeners take IPv4 only, DNS answers no AAAA; IPv6 is captured either way"},
	}
}

func variablesOfControl() []Variable {
	return []Variable{
		{Name: "XDS_ADDRESS", Kind: "text", About: "the control plane's URI; empty: none. Unset: discoveryAddress, else https://istiod.istio-system.svc:15012 in Kubernetes and https://localhost:15012 elsewhere"},
		{Name: "CA_ADDRESS", Kind: "text", About: "the certificate authority's URI; unset: the control plane's usual address"},
		{Name: "KUBERNETES_SERVICE_HOST", Kind: "text", About: "set by Kubernetes: that we are in it"},
		{Name: "XDS_ROOT_CA", Kind: "text", Default: "./var/run/secrets/istio/root-cert.pem", About: "what the control plane's certificate leads to: a file, `SYSTEM`, or PEM"},
		{Name: "CA_ROOT_CA", Kind: "text", Default: "./var/run/secrets/istio/root-cert.pem", About: "the same of the authority"},
		{Name: "ALT_XDS_HOSTNAME", Kind: "text", About: "one more name that the control plane may prove"},
		{Name: "ALT_CA_HOSTNAME", Kind: "text", About: "one more name that the authority may prove"},
		{Name: "AUTH_TOKEN", Kind: "text", About: "a token, or the file that holds it; unset: ./var/run/secrets/tokens/istio-token, if it is there"},
		{Name: "XDS_HEADER_*", Kind: "text", About: "headers of requests to the control plane, by the rest of the name"},
		{Name: "CA_HEADER_*", Kind: "text", About: "headers of requests to the authority"},
		{Name: "XDS_ON_DEMAND", Kind: "bool", Default: "false", About: "ask for resources when they are first needed; not together with DNS"},
		{Name: "WORKLOAD_WAIT_TIMEOUT", Kind: "duration", Default: "5s", Ours: true, About: "how long a connection waits for what it cannot be judged without"},
		{Name: "LOCAL_XDS_PATH", Kind: "text", About: "a file of resources, followed as it changes"},
		{Name: "LOCAL_XDS", Kind: "text", About: "the same, inline; not both"},
		{Name: "SECRET_TTL", Kind: "duration", Default: "24h", About: "the life of certificates that are asked for"},
		{Name: "FAKE_CA", Kind: "bool", Default: "false", About: "be our own authority"},
		{Name: "EMBEDDED_CA_DIR", Kind: "text", Default: "./var/lib/ztunnel/ca", Ours: true, About: "its root and key; in Kubernetes it must be named"},
		{Name: "CRL_PATH", Kind: "text", About: "a file of revocation lists, followed as it changes"},
		{Name: "COMPLIANCE_POLICY", Kind: "text", About: "`pqc`: only the key exchange X25519MLKEM768"},
		{Name: "TLS12_ENABLED", Kind: "text", About: "`true`: TLS 1.2 as well"},
	}
}

func variablesOfConnections() []Variable {
	return []Variable{
		{Name: "POOL_MAX_STREAMS_PER_CONNECTION", Kind: "number", Default: "100", About: "connections that share a tunnel"},
		{Name: "POOL_UNUSED_RELEASE_TIMEOUT", Kind: "duration", Default: "5m", About: "how long a tunnel outlives its last connection"},
		{Name: "HTTP2_STREAM_WINDOW_SIZE", Kind: "number", Default: "4194304", About: "bytes"},
		{Name: "HTTP2_CONNECTION_WINDOW_SIZE", Kind: "number", Default: "16777216", About: "bytes"},
		{Name: "HTTP2_FRAME_SIZE", Kind: "number", Default: "1048576", About: "bytes, 16384 to 16777215"},
		{Name: "HANDSHAKE_LIMIT", Kind: "number", Default: "4096", Ours: true, About: "connections to port 15008 of all pods without a finished handshake; 0: any number"},
		{Name: "HANDSHAKE_LIMIT_PER_SOURCE", Kind: "number", Default: "512", Ours: true, About: "the same of one address"},
		{Name: "KEEPALIVE_ENABLED", Kind: "bool", Default: "true", About: "TCP keepalive on data sockets"},
		{Name: "KEEPALIVE_TIME", Kind: "duration", Default: "180s", About: "after so much silence"},
		{Name: "KEEPALIVE_INTERVAL", Kind: "duration", Default: "180s", About: "so often"},
		{Name: "KEEPALIVE_RETRIES", Kind: "number", Default: "9", About: "so many times"},
		{Name: "USER_TIMEOUT_ENABLED", Kind: "bool", Default: "false", About: "TCP_USER_TIMEOUT, as long as the probes take"},
		{Name: "LOCALHOST_APP_TUNNEL", Kind: "bool", Default: "true", About: "applications that want a PROXY header are dialled on loopback"},
		{Name: "ENABLE_RESPONSE_BAGGAGE", Kind: "bool", Default: "true", About: "send baggage on answers, read it from requests"},
		{Name: "UNSTABLE_ENABLE_SOCKS5", Kind: "bool", Default: "false", About: "SOCKS5 on 127.0.0.1:15080 of each pod"},
		{Name: "LB_POLICY", Kind: "choice", Default: "least-loaded", Ours: true, About: "how an endpoint is chosen: `least-loaded`, or `random` as ztunnel does"},
	}
}

func variablesOfDNS() []Variable {
	return []Variable{
		{Name: "ISTIO_META_DNS_CAPTURE", Kind: "text", About: "pods' DNS is answered if it is unset or `true`"},
		{Name: "ISTIO_META_DNS_PROXY_ADDR", Kind: "text", Default: "localhost:15053", About: "where; another address only with `dedicated`"},
		{Name: "CLUSTER_DOMAIN", Kind: "text", Default: "cluster.local", About: "the domain of services"},
		{Name: "PREFERED_SERVICE_NAMESPACE", Kind: "text", About: "whose service is meant if a name has several (the name is spelt so)"},
		{Name: "RESOLV_CONF", Kind: "text", Default: "/etc/resolv.conf", Ours: true, About: "whom to ask what the mesh does not know; followed as it changes"},
		{Name: "DNS_CACHE", Kind: "bool", Default: "true", Ours: true, About: "keep what upstream said, for each pod apart"},
	}
}

func variablesOfPages() []Variable {
	return []Variable{
		{Name: "ADMIN_SOCKET", Kind: "text", Ours: true, About: "the path of a Unix socket (0600) for the admin pages, instead of port 15000 on loopback"},
		{Name: "HANDOVER_SOCK", Kind: "text", Default: "/var/run/ztunnel/handover.sock", Ours: true, About: "the Unix socket where open connections pass to the next process; empty: they do not"},
		{Name: "RUST_LOG", Kind: "text", Default: "info", About: "what is logged: `level` and `target=level`, apart by commas"},
		{Name: "LOG_FORMAT", Kind: "text", Default: "plain", About: "`json`, or plain"},
		{Name: "ACCESS_LOG_REASON", Kind: "bool", Default: "false", Ours: true, About: "the reason behind the keys of an access line"},
		{Name: "ACCESS_LOG_TCP_INFO", Kind: "bool", Default: "false", Ours: true, About: "who ended first, how, and TCP_INFO behind them"},
		{Name: "AUTHZ_POLICY_INFO_LOGGING", Kind: "text", About: "`true`: policy decisions at info"},
		{Name: "ISTIO_META_ISTIO_VERSION", Kind: "text", Default: "unknown", About: "the version that `istio_build` tells"},
	}
}
