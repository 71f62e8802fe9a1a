// SPDX-License-Identifier: Apache-2.0

package app

import (
	"crypto/fips140"
	"fmt"
	"runtime"
	"runtime/debug"
)

// A BuildInfo says what was built; it is the version line, the first log line
// and the version part of config_dump (contract 1.1, 13.4). The field names
// are the reference's, whose tools parse them; RustVersion holds the Go
// version.
type BuildInfo struct {
	Version        string `json:"version"`
	GitRevision    string `json:"gitRevision"`
	RustVersion    string `json:"rustVersion"`
	BuildProfile   string `json:"buildProfile"`
	BuildStatus    string `json:"buildStatus"`
	IstioVersion   string `json:"istioVersion"`
	CryptoProvider string `json:"cryptoProvider"`
}

// readBuildInfo asks the binary what it is. istioVersion is
// ISTIO_META_ISTIO_VERSION, or empty.
func readBuildInfo(istioVersion string) BuildInfo {
	b := BuildInfo{
		Version:        "unknown",
		GitRevision:    "unknown",
		RustVersion:    runtime.Version(),
		BuildProfile:   "release",
		BuildStatus:    "unknown",
		IstioVersion:   istioVersion,
		CryptoProvider: "tls-go",
	}
	if b.IstioVersion == "" {
		b.IstioVersion = "unknown"
	}
	if module := fips140.Version(); module != "latest" {
		b.CryptoProvider += "-fips140-" + module // built with GOFIPS140
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.GitRevision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			b.BuildStatus = "Modified"
		case s.Key == "vcs.modified":
			b.BuildStatus = "Clean"
		}
	}
	return b
}

// String is the version line, without a newline.
func (b BuildInfo) String() string {
	return fmt.Sprintf("version.BuildInfo{Version:%q, GitRevision:%q, RustVersion:%q, BuildProfile:%q, BuildStatus:%q, IstioVersion:%q, CryptoProvider:%q}",
		b.Version, b.GitRevision, b.RustVersion, b.BuildProfile, b.BuildStatus, b.IstioVersion, b.CryptoProvider)
}
