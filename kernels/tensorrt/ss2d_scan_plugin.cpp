// TensorRT plugin "SS2DScan", version 1: the four-direction selective scan of SS2D (and MambaIRv2's single one).
//
// Inputs: x (B, H, W, D), delta (B, H, W, K, D), A (K, D, N), B and C (B, H, W, K, N), D (K, D), delta_bias (K, D).
// Output: y (B, H, W, D). x, delta, B, C and y are FP32 or all FP16; A, D and delta_bias are FP32.
// Attributes: directions (K integers: 0 row, 1 column, 2 row reversed, 3 column reversed), delta_softplus (0 or 1),
// chunk (pixels that one thread walks; 128 when absent), delta_grid (4 floats where delta lies on a constant grid
// code * step - shift: step, shift, lowest and highest code; decays are then looked up, not computed).
#include <NvInfer.h>
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "ss2d_scan.h"

namespace {

using namespace nvinfer1;

constexpr char const* kName = "SS2DScan";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "";
enum Input : int32_t { kX, kDelta, kA, kB, kC, kD, kBias, kInputs };

struct Settings {
    std::vector<int32_t> directions{qmambair::kRow, qmambair::kColumn, qmambair::kRowReversed, qmambair::kColumnReversed};
    int32_t softplus{1};
    int32_t chunk{128};
    std::vector<float> grid;

    bool valid() const {
        qmambair::ScanShape on{};
        if (grid.size() == 4) qmambair::set_grid(on, grid.data());
        bool const sound = grid.empty() || (grid.size() == 4 && on.levels > 0 && on.step > 0.0f);
        return sound && !directions.empty() && directions.size() <= size_t(qmambair::kMaxDirections) && chunk > 0 &&
               std::all_of(directions.begin(), directions.end(), [](int32_t o) { return o >= 0 && o <= 3; });
    }
};

class ScanPlugin : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    explicit ScanPlugin(Settings settings) : settings_(std::move(settings)) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return new (std::nothrow) ScanPlugin(settings_); }

    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return 1; }

    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t count, DynamicPluginTensorDesc const*, int32_t) noexcept override {
        if (count != kInputs) return 1;
        // dimensions that vary are -1 here, so only the fixed ones can be compared
        Dims const& delta = in[kDelta].desc.dims;
        Dims const& A = in[kA].desc.dims;
        bool const fits = in[kX].desc.dims.nbDims == 4 && delta.nbDims == 5 && A.nbDims == 3 && in[kB].desc.dims.nbDims == 5 &&
                          in[kC].desc.dims.nbDims == 5 && A.d[0] == int64_t(settings_.directions.size()) &&
                          A.d[2] <= qmambair::kMaxStates;
        return fits ? 0 : 1;
    }

    int32_t getOutputDataTypes(DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept override {
        if (inputs != kInputs || outputs != 1) return 1;
        out[0] = in[kX];
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* out, int32_t outputs,
        IExprBuilder&) noexcept override {
        if (inputs != kInputs || outputs != 1) return 1;
        out[0] = in[kX];
        return 0;
    }

    bool supportsFormatCombination(int32_t at, DynamicPluginTensorDesc const* all, int32_t inputs, int32_t outputs) noexcept override {
        if (inputs != kInputs || outputs != 1) return false;
        PluginTensorDesc const& desc = all[at].desc;
        if (desc.format != TensorFormat::kLINEAR) return false;
        if (at == kA || at == kD || at == kBias) return desc.type == DataType::kFLOAT;
        if (at == kX) return desc.type == DataType::kFLOAT || desc.type == DataType::kHALF;
        return desc.type == all[kX].desc.type;
    }

    size_t getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept override {
        return qmambair::scan_workspace(shape(in[kX].max, in[kA].max), in[kX].desc.type == DataType::kHALF);
    }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*, int32_t) noexcept override {
        if (inputs != kInputs) return 1;
        Dims const &x = in[kX].dims, &A = in[kA].dims;
        if (x.nbDims != 4 || A.nbDims != 3) return 1;
        auto const is = [&](Input at, std::initializer_list<int64_t> wanted) {
            Dims const& dims = in[at].dims;
            return dims.nbDims == int32_t(wanted.size()) && std::equal(wanted.begin(), wanted.end(), dims.d);
        };
        auto const map = [&](Input at, int64_t last) { return is(at, {x.d[0], x.d[1], x.d[2], A.d[0], last}); };
        bool const same = map(kDelta, x.d[3]) && map(kB, A.d[2]) && map(kC, A.d[2]) && A.d[1] == x.d[3] &&
                          is(kD, {A.d[0], A.d[1]}) && is(kBias, {A.d[0], A.d[1]}) &&
                          A.d[0] == int64_t(settings_.directions.size());
        for (int i = 0; i < 4; ++i)
            if (x.d[i] > INT32_MAX) return 1;
        return same && A.d[2] <= qmambair::kMaxStates && qmambair::fits(shape(x, A)) ? 0 : 1;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) noexcept override {
        qmambair::ScanShape const s = shape(in[kX].dims, in[kA].dims);
        cudaError_t status;
        if (in[kX].type == DataType::kHALF) {
            status = qmambair::scan_half(s, gather<__half>(inputs), static_cast<__half*>(outputs[0]), workspace, stream);
        } else {
            status = qmambair::scan_float(s, gather<float>(inputs), static_cast<float*>(outputs[0]), workspace, stream);
        }
        return status == cudaSuccess ? 0 : 1;
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        fields_ = {
            PluginField("directions", settings_.directions.data(), PluginFieldType::kINT32, int32_t(settings_.directions.size())),
            PluginField("delta_softplus", &settings_.softplus, PluginFieldType::kINT32, 1),
            PluginField("chunk", &settings_.chunk, PluginFieldType::kINT32, 1),
        };
        if (!settings_.grid.empty()) fields_.emplace_back("delta_grid", settings_.grid.data(), PluginFieldType::kFLOAT32, 4);
        collection_ = {int32_t(fields_.size()), fields_.data()};
        return &collection_;
    }

private:
    qmambair::ScanShape shape(Dims const& x, Dims const& A) const {
        qmambair::ScanShape s{int(x.d[0]), int(x.d[1]), int(x.d[2]), int(x.d[3]), int(A.d[0]), int(A.d[2]), settings_.chunk,
            settings_.softplus, {}, 0, 0, 0.0f, 0.0f};
        std::copy(settings_.directions.begin(), settings_.directions.end(), s.order);
        if (!settings_.grid.empty()) qmambair::set_grid(s, settings_.grid.data());
        return s;
    }

    template <typename T>
    static qmambair::ScanInputs<T> gather(void const* const* in) {
        return {static_cast<T const*>(in[kX]), static_cast<T const*>(in[kDelta]), static_cast<T const*>(in[kB]),
            static_cast<T const*>(in[kC]), static_cast<float const*>(in[kA]), static_cast<float const*>(in[kD]),
            static_cast<float const*>(in[kBias]), nullptr, nullptr};
    }

    Settings settings_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_{};
};

class ScanCreator : public IPluginCreatorV3One {
public:
    ScanCreator()
        : fields_{PluginField("directions", nullptr, PluginFieldType::kINT32, 4),
              PluginField("delta_softplus", nullptr, PluginFieldType::kINT32, 1),
              PluginField("chunk", nullptr, PluginFieldType::kINT32, 1),
              PluginField("delta_grid", nullptr, PluginFieldType::kFLOAT32, 4)},
          collection_{int32_t(fields_.size()), fields_.data()} {}

    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }

    // Null (TensorRT then reports the node) when an attribute is of another type or out of range.
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* given, TensorRTPhase) noexcept override {
        Settings settings;
        for (int32_t i = 0; i < given->nbFields; ++i) {
            PluginField const& field = given->fields[i];
            if (std::strcmp(field.name, "delta_grid") == 0) {
                if (field.type != PluginFieldType::kFLOAT32 || field.length != 4 || !field.data) return nullptr;
                auto const* data = static_cast<float const*>(field.data);
                settings.grid.assign(data, data + 4);
                continue;
            }
            std::vector<int32_t> values;
            if (!read(field, values)) return nullptr;
            if (std::strcmp(field.name, "directions") == 0) settings.directions = values;
            if (std::strcmp(field.name, "delta_softplus") == 0 && !values.empty()) settings.softplus = values[0];
            if (std::strcmp(field.name, "chunk") == 0 && !values.empty()) settings.chunk = values[0];
        }
        return settings.valid() ? new (std::nothrow) ScanPlugin(std::move(settings)) : nullptr;
    }

private:
    // ONNX integers arrive as INT64 from newer parsers and as INT32 from older ones and from a serialized engine.
    static bool read(PluginField const& field, std::vector<int32_t>& values) {
        if (field.length < 0 || (field.length > 0 && !field.data)) return false;
        if (field.type == PluginFieldType::kINT32) {
            auto const* data = static_cast<int32_t const*>(field.data);
            values.assign(data, data + field.length);
            return true;
        }
        if (field.type == PluginFieldType::kINT64) {
            auto const* data = static_cast<int64_t const*>(field.data);
            if (!std::all_of(data, data + field.length, [](int64_t v) { return v == int32_t(v); })) return false;
            values.assign(data, data + field.length);
            return true;
        }
        // names the parser adds of its own (plugin_version, plugin_namespace) are text and mean nothing here
        return field.type == PluginFieldType::kCHAR;
    }

    std::vector<PluginField> fields_;
    PluginFieldCollection collection_;
};

}  // namespace

// What TensorRT looks for in a library given to --staticPlugins or --dynamicPlugins.
extern "C" __attribute__((visibility("default"))) IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static ScanCreator creator;
    static IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(ILoggerFinder*) {}
