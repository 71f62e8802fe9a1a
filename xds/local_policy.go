// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"go.yaml.in/yaml/v3"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// parsePolicy wants every field that says what the policy does: a default
// would be a guess about who may connect.
func parsePolicy(v *value) *mesh.Policy {
	p := &mesh.Policy{}
	v.object(strict, []string{"name", "namespace", "scope", "action", "rules"}, func(field string, f *value) bool {
		switch field {
		case "name":
			p.Name = f.text()
		case "namespace":
			p.Namespace = f.text()
		case "scope":
			p.Scope = oneOf(f, mesh.ScopeGlobal, mesh.ScopeNamespace, mesh.ScopeWorkloadSelector)
		case "action":
			p.Action = oneOf(f, mesh.Allow, mesh.Deny)
		case "dryRun":
			p.DryRun = f.flag()
		case "rules":
			p.Rules = collect(f, parseRule)
		default:
			return false
		}
		return true
	})
	return p
}

func parseRule(v *value) mesh.Rule     { return collect(v, parseClause) }
func parseClause(v *value) mesh.Clause { return collect(v, parseMatch) }

func parseMatch(v *value) (m mesh.Match) {
	v.object(lenient, nil, func(field string, f *value) bool {
		switch field {
		case "namespaces":
			m.Namespaces = collect(f, parseString)
		case "notNamespaces":
			m.NotNamespaces = collect(f, parseString)
		case "principals":
			m.Principals = collect(f, parseString)
		case "notPrincipals":
			m.NotPrincipals = collect(f, parseString)
		case "serviceAccounts":
			m.ServiceAccounts = collect(f, parseAccount)
		case "notServiceAccounts":
			m.NotServiceAccounts = collect(f, parseAccount)
		default:
			return readMatchPlace(&m, field, f)
		}
		return true
	})
	return m
}

func readMatchPlace(m *mesh.Match, field string, f *value) bool {
	switch field {
	case "sourceIps":
		m.SourceIPs = collect(f, (*value).prefix)
	case "notSourceIps":
		m.NotSourceIPs = collect(f, (*value).prefix)
	case "destinationIps":
		m.DestinationIPs = collect(f, (*value).prefix)
	case "notDestinationIps":
		m.NotDestinationIPs = collect(f, (*value).prefix)
	case "destinationPorts":
		m.DestinationPorts = collect(f, (*value).port)
	case "notDestinationPorts":
		m.NotDestinationPorts = collect(f, (*value).port)
	default:
		return false
	}
	return true
}

func parseAccount(v *value) (a mesh.ServiceAccountMatch) {
	v.object(lenient, []string{"namespace", "serviceAccount"}, func(field string, f *value) bool {
		switch field {
		case "namespace":
			a.Namespace = f.text()
		case "serviceAccount":
			a.ServiceAccount = f.text()
		default:
			return false
		}
		return true
	})
	return a
}

// parseString reads a string match: the tag form of YAML (!Exact s), or the
// map form ({Exact: s}), for JSON has no tags.
func parseString(v *value) (m mesh.StringMatch) {
	if kind := v.custom(); kind != "" {
		plain := *v.node
		plain.Tag, plain.Style = "", plain.Style&^yaml.TaggedStyle
		if plain.Kind == yaml.ScalarNode {
			plain.Tag = "!!str"
		}
		return v.readString(kind, &value{r: v.r, node: &plain, parent: v.parent, field: v.field, index: v.index})
	}
	if v.node.Kind != yaml.MappingNode || len(v.node.Content) != 2 {
		v.wrongType("a YAML tag (`!Exact`, `!Prefix`, `!Suffix`, `!Presence`) or a map of one of these names")
		return m
	}
	v.table(func(key, val *value) { m = v.readString(key.text(), val) })
	return m
}

func (v *value) readString(kind string, val *value) mesh.StringMatch {
	switch kind {
	case "Exact":
		return mesh.StringMatch{Kind: mesh.Exact, Value: val.text()}
	case "Prefix":
		return mesh.StringMatch{Kind: mesh.Prefix, Value: val.text()}
	case "Suffix":
		return mesh.StringMatch{Kind: mesh.Suffix, Value: val.text()}
	case "Presence":
		if empty := val.node.Value == "" || val.null(); !empty || len(val.node.Content) > 0 {
			val.wrongType("nothing: `[]`")
		}
		return mesh.StringMatch{Kind: mesh.Presence}
	default:
		v.fail(v.node, "unknown variant `%s`, expected one of `Exact`, `Prefix`, `Suffix`, `Presence`", kind)
		return mesh.StringMatch{}
	}
}
