// Package wire reads callbacks from their protobuf messages (callrelay/callback/v1). It owns only that step; what the
// values mean is package callback's.
package wire

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"callrelay/callback"
)

// Params are the parameters of a callback message whose fields are all strings, by their names in a query.
func Params(m proto.Message) callback.Params {
	params := make(callback.Params, 0, 16)
	m.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		params = append(params, callback.Param{Name: field.JSONName(), Value: value.String()})
		return true
	})
	return params
}
