// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ztunnel-go/ztunnel/xds/delta"
)

// decode reads the payload of a resource. The errors are those that the
// control plane is told by the reference (contract 8.3).
func decode(r *delta.Resource, m proto.Message) error {
	if !r.HasPayload {
		return errors.New("XDS payload without resource")
	}
	if err := proto.Unmarshal(r.Payload, m); err != nil {
		// protobuf's own text says nothing and is made to differ from build
		// to build.
		return fmt.Errorf("decode: failed to decode Protobuf message: %s", fault(r.Payload, m.ProtoReflect().Descriptor()))
	}
	return nil
}

// faultDepth is how deep fault looks; protobuf itself refuses deeper nesting.
const faultDepth = protowire.DefaultRecursionLimit

// fault says what is wrong with a message that could not be decoded.
func fault(b []byte, d protoreflect.MessageDescriptor) string {
	if text := faultIn(b, d, faultDepth); text != "" {
		return text
	}
	return "malformed message"
}

func faultIn(b []byte, d protoreflect.MessageDescriptor, depth int) string {
	if depth == 0 {
		return "recursion limit reached"
	}
	for len(b) > 0 {
		tag, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return "invalid varint"
		}
		num, typ := protowire.DecodeTag(tag)
		switch {
		case tag>>3 > uint64(protowire.MaxValidNumber):
			return fmt.Sprintf("invalid key value: %d", tag)
		case num < protowire.MinValidNumber:
			return "invalid tag value: 0"
		case typ > protowire.Fixed32Type:
			return fmt.Sprintf("invalid wire type value: %d", typ)
		}
		b = b[n:]
		field := d.Fields().ByNumber(num)
		n = protowire.ConsumeFieldValue(num, typ, b)
		if n < 0 {
			return inField(d, field, shortValue(typ))
		}
		if field != nil && typ == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b)
			if text := faultInBytes(value, field, depth); text != "" {
				return inField(d, field, text)
			}
		}
		b = b[n:]
	}
	return ""
}

func faultInBytes(value []byte, field protoreflect.FieldDescriptor, depth int) string {
	switch {
	case field.Kind() == protoreflect.StringKind && !utf8.Valid(value):
		return "invalid string value: data is not UTF-8 encoded"
	case field.Message() != nil:
		return faultIn(value, field.Message(), depth-1)
	case field.IsList() && field.IsPacked():
		return faultPacked(value)
	}
	return ""
}

// faultPacked looks at a packed list. All of ours are of numbers and
// enumerations, which are varints.
func faultPacked(value []byte) string {
	for len(value) > 0 {
		_, n := protowire.ConsumeVarint(value)
		if n < 0 {
			return "invalid varint"
		}
		value = value[n:]
	}
	return ""
}

func shortValue(typ protowire.Type) string {
	switch typ {
	case protowire.VarintType:
		return "invalid varint"
	case protowire.StartGroupType, protowire.EndGroupType:
		return "unexpected end group tag"
	default:
		return "buffer underflow"
	}
}

// inField puts the place before the fault, as in Workload.name.
func inField(d protoreflect.MessageDescriptor, field protoreflect.FieldDescriptor, text string) string {
	if field == nil {
		return text
	}
	return fmt.Sprintf("%s.%s: %s", d.Name(), field.Name(), text)
}
